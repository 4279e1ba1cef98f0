"""From a graph to the steps of a program: rules, fusion, placement, memory plan."""
