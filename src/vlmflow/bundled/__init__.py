"""The models that ship with the package: their directories, and how one is put together."""
