"""Where artefacts live: URIs, the store protocol, and its local and S3 implementations."""
