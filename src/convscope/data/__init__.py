"""Data: from files to arrays, and from arrays to splits."""
