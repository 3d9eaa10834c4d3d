"""One module per cloud. Each reads its cloud's metadata and decides nothing; `detect` lists them."""
