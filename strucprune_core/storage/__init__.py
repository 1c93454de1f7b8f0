"""Where artefacts are stored: URIs, the store protocols, local directories and S3."""
