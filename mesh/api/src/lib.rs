//! What users write: labels, annotations, custom resources, and the directory they may lie in.
