//! The end-to-end tests. They are one program, so that a test waits while another one works,
//! whatever files the two are in.

mod burden;
mod children;
mod claims;
mod commands;
mod copies;
mod debian;
mod documents;
mod drill;
mod growth;
mod harness_smoke;
mod health;
mod lifecycle;
mod offsite;
mod offsite_controls;
mod offsite_damage;
mod offsite_restore;
mod protected;
mod restore;
mod restore_faults;
mod restore_limits;
mod restore_points;
mod restoring;
mod settings;
mod shipping;
