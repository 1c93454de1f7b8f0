"""Images, the compose file, and the programs that build and check them."""
