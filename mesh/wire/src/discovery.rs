//! What the mesh knows here and now, kept up to date over xDS.
