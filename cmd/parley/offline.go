package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/offline"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/fault"
)

// offlineFlags are what a proof or an export is held against.
type offlineFlags struct{ keys, pins []string }

func (f *offlineFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.keys, "key", nil, "of a file or directory: the public `key` of the log, or a file of keys, as parley audit keys writes it; again for more")
	cmd.Flags().StringArrayVar(&f.pins, "pin", nil, "of a file or directory: a `file` with a signed checkpoint that somebody kept; again for each")
}

// check refuses flags that do nothing.
func (f *offlineFlags) check(args []string) error {
	if len(args) == 0 && len(f.keys)+len(f.pins) > 0 {
		return usage("name the proof or the export: parley audit verify PATH --key FILE", "--key and --pin are for a proof or an export")
	}
	return nil
}

// verifyOffline verifies a proof, an export, or a directory of exports, without a
// server.
func (a *app) verifyOffline(ctx context.Context, path string, f offlineFlags) error {
	given, err := f.read()
	if err != nil {
		return err
	}
	all, err := exportsOf(path)
	if err != nil {
		return offlineFault(path, err)
	}
	var reports []*offline.Report
	intact := true
	for _, one := range all {
		stop := a.term.Progress(ctx, a.clock, "recomputing every hash of "+one)
		r, err := verifyOne(ctx, one, given, len(all) > 1)
		stop()
		if err != nil {
			return offlineFault(one, err)
		}
		reports, intact = append(reports, r), intact && r.Intact
	}
	if a.term.JSON() {
		err = a.term.Document("offline_verification", map[string]any{"intact": intact, "reports": reports})
	} else {
		for i, r := range reports {
			if i > 0 {
				a.term.Printf("\n")
			}
			// The report is safe for a terminal by itself; its lines stay lines.
			err = errors.Join(err, a.term.Raw([]byte(r.Text())))
		}
	}
	if err == nil && !intact {
		return errNo
	}
	return err
}

func verifyOne(ctx context.Context, path string, given offline.Given, several bool) (*offline.Report, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		proof, err := readAtMost(path, tiles.MaxProof)
		if err != nil {
			return nil, err
		}
		return offline.Proof(proof, path, given)
	}
	if several {
		given = forLog(path, given)
	}
	return offline.Export(ctx, path, given)
}

// forLog is of given what concerns the export: pins and keys of its log, and of
// witnesses those of others.
func forLog(dir string, given offline.Given) (own offline.Given) {
	signed, err := readAtMost(filepath.Join(dir, "checkpoint"), checkpoint.MaxNote)
	if err != nil {
		return given
	}
	c, err := checkpoint.Unverified(signed)
	if err != nil {
		return given
	}
	for _, k := range given.Keys {
		if (k.Name() == c.Origin) != k.Witness() {
			own.Keys = append(own.Keys, k)
		}
	}
	for _, p := range given.Pins {
		if pinned, err := checkpoint.Unverified(p.Note); err != nil || pinned.Origin == c.Origin {
			own.Pins = append(own.Pins, p)
		}
	}
	return own
}

// exportsOf is path, or the exports in it.
func exportsOf(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(path, "checkpoint")); err == nil || !info.IsDir() {
		return []string{path}, nil
	}
	var all []string
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(path, e.Name(), "checkpoint")); err == nil {
			all = append(all, filepath.Join(path, e.Name()))
		}
	}
	if err == nil && len(all) == 0 {
		err = errNoExport
	}
	return all, err
}

var errNoExport = errors.New("neither a checkpoint nor exports are in it")

func (f *offlineFlags) read() (given offline.Given, err error) {
	for _, text := range f.keys {
		if key, err := checkpoint.ParseVerifier(text); err == nil {
			given.Keys = append(given.Keys, key)
			continue
		}
		data, err := readAtMost(text, 64<<10)
		if errors.Is(err, fs.ErrNotExist) {
			return given, usage("a key is one line, NAME+ID+KEY, as parley audit keys writes it", "--key %q is neither a public key nor a file", text)
		}
		var keys []*checkpoint.Verifier
		if err == nil {
			keys, err = offline.ParseKeys(data)
		}
		if err != nil {
			return given, offlineFault(text, err)
		}
		given.Keys = append(given.Keys, keys...)
	}
	for _, name := range f.pins {
		note, err := readAtMost(name, checkpoint.MaxNote)
		if err != nil {
			return given, offlineFault(name, err)
		}
		given.Pins = append(given.Pins, offline.Pin{Name: name, Note: note})
	}
	return given, nil
}

// offlineFault says what of the input is of no use.
func offlineFault(path string, err error) error {
	hint := "name a proof (parley audit prove), or the directory of an export (parley audit export)"
	var at *fs.PathError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, offline.ErrNoKey):
		hint = "give the log's public key, from somewhere else than the export: --key FILE, as parley audit keys has written it"
	case errors.Is(err, offline.ErrPin):
		hint = "a pin is a checkpoint of the same log, signed by a key that --key names"
	case errors.Is(err, offline.ErrKeys):
		hint = "a key is one line, NAME+ID+KEY, as parley audit keys writes it"
	case errors.As(err, &at):
		err, hint = at.Err, "ls -ld "+path
	}
	return fault.Wrap(err, fault.Usage, hint, "%s cannot be used", path)
}

var errTooLarge = errors.New("it is larger than such a file can be")

// readAtMost reads a file of at most limit bytes.
func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, err
}
