package ca

// Lint is lint, for what the authority itself never makes.
var Lint = lint
