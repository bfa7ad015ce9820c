//! The operator's command: installs, shows and explains the mesh.
