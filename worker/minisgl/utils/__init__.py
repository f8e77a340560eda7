"""Logging, sockets and the life of a child process."""
