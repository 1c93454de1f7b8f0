"""The web page for people who run jobs: static files, which call the REST API like any client."""
