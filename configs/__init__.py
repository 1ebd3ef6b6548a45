"""Configurations: ``default.py`` holds every option, the others change what differs."""
