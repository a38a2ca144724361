"""A plan on the nodes of a cluster: one process for each device, and a driver that hands out groups."""
