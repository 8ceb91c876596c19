package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An export writes nothing outside of its directory, whatever the server calls a log.
func TestAnExportStaysInItsDirectory(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "evidence")
	_, errs, exit := ask(t, serve(t, "logs_outside.json"), "audit export "+dir, false, false, 0)
	if exit == 0 || !strings.Contains(errs, `a log "../outside", which no log is called`) {
		t.Errorf("exit code %d\n%s", exit, errs)
	}
	if made, err := os.ReadDir(parent); err != nil || len(made) > 0 {
		t.Errorf("it made %v, %v", made, err)
	}
}
