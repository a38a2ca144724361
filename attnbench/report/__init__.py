"""How people read runs: charts, pages, tables in a terminal, and one file a format."""
