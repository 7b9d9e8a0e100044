"""Files in and out, whole or not at all. RELION's and cryoSPARC's names stay here."""
