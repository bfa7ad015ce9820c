//! Writes the definitions of our kinds into `install/crds/`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../install/crds");
    for definition in ambit_api::crds::all() {
        std::fs::write(directory.join(&definition.file), definition.yaml()?)?;
    }
    Ok(())
}
