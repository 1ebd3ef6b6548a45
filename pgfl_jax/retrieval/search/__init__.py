"""Galleries of pictures in files, and the search in them: ``pgfl embed``, ``search``, ``index``."""
