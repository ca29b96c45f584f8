package record

// Build is the version of the programs, set by the linker. It stands in the
// open record of each epoch.
var Build = "dev"
