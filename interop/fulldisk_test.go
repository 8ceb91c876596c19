package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAFullDiskRefusesAnApplyAndChangesNothing puts the data directory on a
// small tmpfs, fills it, and frees it again: no hand is needed afterwards.
func TestAFullDiskRefusesAnApplyAndChangesNothing(t *testing.T) {
	need(t, "mount")
	curl, app := need(t, "curl"), startNginx(t)
	dir := shortDir(t)
	disk := filepath.Join(dir, "data")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "parley-test", disk)
	t.Cleanup(func() { run(t, "umount", "-l", disk) })
	out := freePort(t)
	mesh := fmt.Sprintf(nginxMesh, curl, out, freePort(t), app)
	m := startIn(t, dir, mesh)

	before, err := m.api.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// The filler takes what is there; what SQLite and the log hold already is theirs.
	_ = exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(disk, "filler"), "bs=4k").Run() // ends with "no space left"
	changed := filepath.Join(dir, "changed.yaml")
	// A large comment, so that the revision does not fit into a free page.
	text := mesh + "# " + strings.Repeat("x", 300<<10) + "\n"
	text = strings.Replace(text, "/headers]", "/headers, /more]", 1)
	if err := os.WriteFile(changed, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	said, err := m.parley("apply", "-f", changed)
	if err == nil || !strings.Contains(said, "PAR-3002") || !strings.Contains(said, "hint:") {
		t.Errorf("apply on a full disk: %v\n%s", err, said)
	}
	after, err := m.api.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if after.Revision != before.Revision {
		t.Errorf("the revision moved from %d to %d", before.Revision, after.Revision)
	}
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	m.until("an apply works again", func() bool {
		_, err := m.parley("apply", "-f", changed)
		return err == nil
	})
	m.until("calls pass", func() bool {
		got, err := exec.Command(curl, "-s", fmt.Sprintf("http://127.0.0.1:%d/public/a", out)).Output()
		return err == nil && strings.Contains(string(got), "nginx saw")
	})
	if v, err := m.api.Verify(context.Background()); err != nil || !v.Intact {
		t.Errorf("the log does not verify afterwards: %+v, %v", v, err)
	}
}
