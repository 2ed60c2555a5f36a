"""Everything of a finished merge beside the weights. It knows no planning, arithmetic or weights."""
