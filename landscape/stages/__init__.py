"""The stages of a probe: each measures one kind of thing on one subject and writes it down.

A stage is a function of a `Record`; `landscape.probing` calls them in order.
"""
