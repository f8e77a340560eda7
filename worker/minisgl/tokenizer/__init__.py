"""Text to tokens and back: chat templates, incremental decoding, stop strings, and their two processes."""
