package node

// Expected is expected.
var Expected = expected
