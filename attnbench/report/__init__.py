"""One file a format; all draw from `frame.rows`."""
