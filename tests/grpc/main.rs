//! The daemon's service over a real unix socket, with the memory backend behind it; everything on one core and on two.

#[path = "../names/hostile.rs"]
mod hostile;
mod house;
mod pages;
mod programs;
mod socket;
mod verbs;
mod watching;
