"""The devices that engines run on."""
