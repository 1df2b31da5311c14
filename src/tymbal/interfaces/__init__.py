"""Models behind the interfaces of others: HEAR, X-ARES, EVAR and hoplite, each a thin module of its own."""
