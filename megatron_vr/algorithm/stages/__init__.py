"""The stages of Algorithm 1, one module each: `run(node, context)` makes the node's folder."""
