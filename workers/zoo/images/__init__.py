"""Pictures of coloured shapes with questions about them: what mini models that see are trained on and asked."""
