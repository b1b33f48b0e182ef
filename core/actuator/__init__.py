"""ado's side: the actuator base class, its dispatcher, parameters, catalog and results. Elsewhere only ``reporting.store`` imports ado."""
