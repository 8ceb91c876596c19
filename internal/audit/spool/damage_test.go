package spool_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/fault"
)

// killed is a copy of a log as a process killed now would leave it.
func killed(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

const firstSegment = "00000000000000000000.seg"

// change edits the first segment of the log in dir.
func change(t testing.TB, dir string, edit func(data []byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, firstSegment)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, edit(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// offsets are where the first n records of a segment begin, and where the last ends.
func offsets(data []byte, n int) []int {
	at := []int{spool.HeaderSize}
	for range n {
		off := at[len(at)-1]
		at = append(at, off+spool.RecordSize(int(binary.NativeEndian.Uint64(data[off:])>>32&0xffff)))
	}
	return at
}

// sealed is the directory of a closed log of n entries.
func sealed(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir)
	record(t, s, 0, n)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// unsealed is one whose n entries were never sealed.
func unsealed(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	record(t, open(t, dir), 0, n)
	return killed(t, dir)
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	const n = 3
	dir := sealed(t, n)
	path := filepath.Join(dir, firstSegment)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	report, err := spool.Verify(dir)
	verified(t, report, err)
	at := offsets(data, n)
	if records, _, ok := spool.Inspect(data, 0, 0); records != n || !ok {
		t.Fatalf("%d records", records)
	}
	data = data[:at[n]+128] // the rest is zeros
	checked := 0
	for off := range at[n] {
		unused := off >= spool.OffBoot && off < spool.HeaderSize
		if unused {
			continue
		}
		for bit := range 8 {
			data[off] ^= 1 << bit
			if _, _, ok := spool.Inspect(data, 0, 0); ok {
				t.Errorf("bit %d of byte %d is flipped and nobody notices", bit, off)
			}
			data[off] ^= 1 << bit
			checked++
		}
	}
	if checked < 10_000 {
		t.Errorf("only %d bits were tried", checked)
	}
}

func TestVerifyNamesThePlace(t *testing.T) {
	t.Parallel()
	dir := sealed(t, 9)
	change(t, dir, func(d []byte) []byte { d[offsets(d, 9)[4]+spool.RecordHead+20] ^= 1; return d })
	report, err := spool.Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]spool.Problem{{File: firstSegment, What: "entry 4 is damaged"}}, report.Problems); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	wantCode(t, report.Err(), fault.LogBroken)
	if _, err := spool.Verify(t.TempDir()); err == nil {
		t.Error("an empty directory verifies")
	}
}

// Whatever is lost or damaged is a gap event at its index, and the rest is there.
func TestRecovery(t *testing.T) {
	t.Parallel()
	zero := func(d []byte, from, to int) []byte { clear(d[from:to]); return d }
	lost := func(reason string, n int, at []int) []string {
		ids := series(0, n)
		for _, i := range at {
			ids[i] = reason + ":1"
		}
		return ids
	}
	gaps := func(n int, at ...int) []string { return lost("log_damaged", n, at) }
	torn := func(n int, at ...int) []string { return lost("not_sealed", n, at) }
	for name, tt := range map[string]struct {
		log  func(testing.TB, int) string
		edit func([]byte) []byte
		want []string
	}{
		"unsealed records are sealed": {unsealed, func(d []byte) []byte { return d }, series(0, 9)},
		"a half-written record does not count": {unsealed, func(d []byte) []byte {
			end := offsets(d, 9)[9]
			copy(d[end+8:], strings.Repeat("half a record", 20)) // all but the word
			return d
		}, series(0, 9)},
		"a hole in what was not synced": {unsealed, func(d []byte) []byte { at := offsets(d, 9); return zero(d, at[3], at[5]) }, torn(9, 3, 4)},
		"a torn body":                   {unsealed, func(d []byte) []byte { at := offsets(d, 9); return zero(d, at[3]+100, at[4]) }, torn(9, 3)},
		"a torn leaf hash": {unsealed, func(d []byte) []byte {
			copy(d[offsets(d, 9)[3]+spool.OffLeaf:], "half of a leaf")
			return d
		}, series(0, 9)},
		"a lost word":                  {sealed, func(d []byte) []byte { at := offsets(d, 9); return zero(d, at[0], at[0]+8) }, gaps(9, 0)},
		"the last lost":                {sealed, func(d []byte) []byte { at := offsets(d, 9); return zero(d, at[8], at[9]) }, gaps(9, 8)},
		"the end lost":                 {sealed, func(d []byte) []byte { at := offsets(d, 9); return zero(d, at[6], at[9]) }, gaps(9, 6, 7, 8)},
		"every other lost":             {sealed, func(d []byte) []byte { at := offsets(d, 9); d[at[1]+99]++; d[at[3]+99]++; d[at[5]+99]++; return d }, gaps(9, 1, 3, 5)},
		"a changed leaf hash":          {sealed, func(d []byte) []byte { d[offsets(d, 9)[2]+spool.OffLeaf]++; return d }, gaps(9, 2)},
		"a file cut short":             {sealed, func(d []byte) []byte { return d[:offsets(d, 9)[7]+60] }, gaps(9, 7, 8)},
		"a file cut to nothing":        {sealed, func(d []byte) []byte { return d[:spool.HeaderSize] }, gaps(9, 0, 1, 2, 3, 4, 5, 6, 7, 8)},
		"the count of the sealed":      {sealed, func(d []byte) []byte { d[spool.OffSealed]++; return d }, append(series(0, 9), "log_damaged:0")},
		"another start of the machine": {unsealed, func(d []byte) []byte { d[spool.OffBoot]++; return d }, append(series(0, 9), "power_loss:0")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tt.log(t, 9)
			change(t, dir, tt.edit)
			s := open(t, dir)
			want(t, s, tt.want)
			// The log goes on, and a second start has nothing more to report.
			record(t, s, 9, 2)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			want(t, s, append(tt.want, series(9, 2)...))
			report, err := s.Verify()
			verified(t, report, err)
		})
	}
}

func TestADamagedFileIsKept(t *testing.T) {
	t.Parallel()
	dir := sealed(t, 3)
	var kept [][]byte
	for _, name := range []string{firstSegment + ".damaged", firstSegment + ".damaged-2"} {
		change(t, dir, func(d []byte) []byte { d[offsets(d, 3)[1]+77] ^= 1; kept = append(kept, d); return d })
		if err := open(t, dir).Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != string(kept[len(kept)-1]) {
			t.Errorf("%s is not the damaged file (%v)", name, err)
		}
	}
}

// segments is a closed log of several files.
func segments(t testing.TB) (dir string, files []string, n int) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir)
	stop := run(t, s)
	record(t, s, 0, 1800)
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%d segments, %v", len(files), err)
	}
	return dir, files, 1800
}

func firstOf(t testing.TB, file string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(filepath.Base(file), "%d.seg", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAMissingFileIsGaps(t *testing.T) {
	t.Parallel()
	dir, files, n := segments(t)
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	report, err := spool.Verify(dir)
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0].What, "is missing") {
		t.Errorf("Verify: %+v, %v", report, err)
	}
	from, to := firstOf(t, files[1]), firstOf(t, files[2])
	ids := series(0, n)
	for i := from; i < to; i++ {
		ids[i] = "log_damaged:1"
	}
	want(t, open(t, dir), ids)
}

// A loss of power just behind a change of files: the header never got to the disk.
func TestALostHeader(t *testing.T) {
	t.Parallel()
	dir, files, n := segments(t)
	last := files[len(files)-1]
	data, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[:spool.HeaderSize])
	if err := os.WriteFile(last, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	want(t, s, append(series(0, n), "log_damaged:0"))
}

// Without any header nobody can say whose entries these are: the files are kept,
// and a new log begins with the event that says so.
func TestNoWholeHeader(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(d []byte) []byte{
		"a flipped bit": func(d []byte) []byte { d[spool.OffFirst] ^= 1; return d },
		"zeros":         func(d []byte) []byte { return make([]byte, len(d)) },
		"cut off":       func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := sealed(t, 3)
			before := nameOf(t, dir)
			change(t, dir, spoil)
			s := open(t, dir)
			want(t, s, []string{"log_damaged:0"})
			if s.Log() == before {
				t.Errorf("the new log is called %s as well", before)
			}
			kept, err := s.Kept()
			if err != nil || len(kept) != 1 || kept[0].File != firstSegment+".damaged" || kept[0].What != "the header is damaged" {
				t.Errorf("kept: %+v, %v", kept, err)
			}
		})
	}
}

func nameOf(t *testing.T, dir string) string {
	t.Helper()
	s := open(t, dir)
	defer s.Close()
	return s.Log()
}

// What was repaired is known to the start that did it, and to every later one as
// long as the damaged file lies there.
func TestRepairedAndKept(t *testing.T) {
	t.Parallel()
	dir := sealed(t, 3)
	change(t, dir, func(d []byte) []byte { d[offsets(d, 3)[1]+77] ^= 1; return d })
	s := open(t, dir)
	damage := []spool.Problem{{File: firstSegment, What: "entry 1 is damaged"}}
	if diff := cmp.Diff(damage, s.Repaired()); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if len(s.Repaired()) > 0 {
		t.Errorf("repaired again: %+v", s.Repaired())
	}
	kept, err := s.Kept()
	damage[0].File += ".damaged"
	if diff := cmp.Diff(damage, kept); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if err := os.Remove(filepath.Join(dir, damage[0].File)); err != nil {
		t.Fatal(err)
	}
	if kept, err = s.Kept(); len(kept) > 0 || err != nil {
		t.Errorf("kept after it was moved away: %+v, %v", kept, err)
	}
}

// A process killed between writing the header of a new file and naming it.
func TestASpareInUse(t *testing.T) {
	t.Parallel()
	dir, files, n := segments(t)
	if err := os.Rename(files[len(files)-1], filepath.Join(dir, "spare")); err != nil {
		t.Fatal(err)
	}
	want(t, open(t, dir), series(0, n))
}

func TestForeignFilesAreRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, dir string, files []string) error{
		"of another log": func(t *testing.T, dir string, files []string) error {
			_, others, _ := segments(t)
			return os.Rename(others[0], files[0])
		},
		"later format": func(_ *testing.T, _ string, files []string) error {
			data, err := os.ReadFile(files[1])
			if err != nil {
				return err
			}
			data[8] = 3
			binary.NativeEndian.PutUint32(data[spool.OffSum:], crc(data[:spool.OffSum]))
			return os.WriteFile(files[1], data, 0o600)
		},
		"former format": func(_ *testing.T, _ string, files []string) error {
			data, err := os.ReadFile(files[1])
			if err != nil {
				return err
			}
			data[8] = 1
			binary.NativeEndian.PutUint32(data[spool.OffSum:], crc(data[:spool.OffSum]))
			return os.WriteFile(files[1], data, 0o600)
		},
		"beyond repair": func(_ *testing.T, dir string, files []string) error {
			return os.Rename(files[1], filepath.Join(dir, "00000000900000000000.seg"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, files, _ := segments(t)
			if err := spoil(t, dir, files); err != nil {
				t.Fatal(err)
			}
			_, err := spool.Open(config(dir))
			wantCode(t, err, fault.LogBroken)
			_, err = spool.Open(config(dir))
			wantCode(t, err, fault.LogBroken) // and not LogBusy
		})
	}
}

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func TestReadMeetsDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	run(t, s)
	record(t, s, 0, 5)
	all(t, s, 0)
	f, err := os.OpenFile(filepath.Join(dir, firstSegment), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), int64(offsets(data, 5)[2]+70)); err != nil {
		t.Fatal(err)
	}
	_, err = s.Read(0, 5)
	wantCode(t, err, fault.LogBroken)
	if got, err := s.Read(0, 2); err != nil || len(got) != 2 {
		t.Errorf("what is before it: %d entries, %v", len(got), err)
	}
	report, err := s.Verify()
	if err != nil || len(report.Problems) != 1 {
		t.Errorf("Verify: %+v, %v", report, err)
	}
}

func FuzzInspect(f *testing.F) {
	dir := sealed(f, 3)
	data, err := os.ReadFile(filepath.Join(dir, firstSegment))
	if err != nil {
		f.Fatal(err)
	}
	data = data[:offsets(data, 3)[3]+64]
	f.Add(data, uint64(0), uint64(0))
	f.Add(data[:spool.HeaderSize+51], uint64(0), uint64(3))
	f.Add(data[spool.HeaderSize:], uint64(1), uint64(2))
	f.Add([]byte{}, uint64(0), uint64(1<<62))
	f.Fuzz(func(t *testing.T, data []byte, first, end uint64) {
		first, end = first>>1, end>>1 // file names have 63 bits
		records, lost, ok := spool.Inspect(data, first, end)
		if ok && lost > 0 {
			t.Errorf("%d lost and all is well", lost)
		}
		if records*spool.RecordHead > len(data) {
			t.Errorf("%d records in %d bytes", records, len(data))
		}
	})
}
