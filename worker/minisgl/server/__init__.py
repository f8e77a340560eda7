"""What the user touches: the command line, the supervised processes, the HTTP endpoint, the terminal chat."""
