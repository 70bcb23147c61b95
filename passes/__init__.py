"""The passes that ship: one file is one pass is one name. They import `compiler.*` and never each other."""
