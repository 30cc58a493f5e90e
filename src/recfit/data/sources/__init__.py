"""Where interactions come from: one file a source.

A source offers

* `ACCEPTS`: what it reads, in words;
* `claims(source) -> bool`: is this name or path for me?
* `read(source, cache) -> Raw`: the columns, unjudged; a set that must be fetched is kept in the directory `cache`.
"""
