"""Images, the compose file, and what builds and starts them."""
