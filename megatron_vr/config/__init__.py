"""Settings: frozen typed objects from one YAML file plus `key=value` overrides."""
