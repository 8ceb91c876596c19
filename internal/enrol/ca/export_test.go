package ca

// Lint is lint, and LintProbe lintProbe, for what the authority itself never makes.
var (
	Lint      = lint
	LintProbe = lintProbe
)
