//! The small application that pods run in the lab.
fn main(){}
