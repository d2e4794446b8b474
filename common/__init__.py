"""The pipeline's parts; each script at the top puts them together."""
