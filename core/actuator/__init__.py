"""ado's side: the actuator base class, its dispatcher, parameters, catalog and results. The only layer that imports ado."""
