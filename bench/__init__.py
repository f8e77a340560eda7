"""One benchmark program: ``python -m bench --help``."""
