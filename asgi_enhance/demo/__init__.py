"""The tour: the whole stack on real servers, shown and checked by real clients."""
