"""Ray's side: leases of hosts, placement groups and what the cluster's nodes have. Imports Ray, not ado."""
