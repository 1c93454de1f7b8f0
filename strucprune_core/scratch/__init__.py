"""Temporary disk: directories, arrays and matrices in files."""
