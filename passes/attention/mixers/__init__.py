"""The mixers that ship, one file a kind: what `linear-attention:kind=...` puts in the place of attention."""
