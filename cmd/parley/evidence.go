package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

func (a *app) auditProveCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "prove ID", Short: "one event with the proof that it is in its log",
		Example: "  parley audit prove 01K3Q8Z4M7QK2V9D3B6H8N5R1T --out call.proof\n  parley audit verify call.proof --key log.keys",
		Args:    arguments(1, 1, "the ID of an event, which for a call is its decision id"),
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` that the proof goes to; it is not written over")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		file, err := c.Proof(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if out == "" {
			if a.term.JSON() {
				return a.term.Document("proof", map[string]string{"proof": string(file)})
			}
			return a.term.Raw(file)
		}
		if err := writeNew(out, file); err != nil {
			var at *fs.PathError
			if errors.As(err, &at) {
				err = at.Err
			}
			return fault.Wrap(err, fault.Usage, "name a file that is not there, in a directory that you can write", "the proof cannot be written to %s", out)
		}
		if a.term.JSON() {
			return a.term.Document("proof", map[string]string{"file": out})
		}
		a.term.Printf("%s: %s\n", out, term.Count(len(file), "byte"))
		a.term.Hintf("To verify it, here or elsewhere:  parley audit verify %s --key FILE, with the file that parley audit keys has written\n", out)
		return nil
	})
	return cmd
}

// writeNew writes a file that is not there yet.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func (a *app) auditKeysCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keys", Short: "the public keys of all logs, to be kept elsewhere",
		Example: "  parley audit keys > log.keys",
		Args:    arguments(0, 0, "no arguments"),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
			logs, err := c.Logs(cmd.Context())
			if err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("logs", logs)
			}
			for _, l := range logs.Items {
				switch {
				case l.Key == "":
					a.term.Printf("# %s was never signed\n", l.Log)
				case l.Own:
					a.term.Printf("# the server's, since %s\n%s\n", term.Stamp(l.Keyed), l.Key)
				default:
					a.term.Printf("# of host %s, since %s\n%s\n# cosigned by %s\n", l.Host, term.Stamp(l.Keyed), l.Key, l.Witness)
				}
			}
			return nil
		}),
	}
}

func (a *app) auditExportCommand() *cobra.Command {
	var log string
	cmd := &cobra.Command{
		Use: "export DIR", Short: "the logs as files that anybody can verify",
		Long: `Each log becomes a directory in DIR, in the form of C2SP tlog-tiles: its
entries, its tree and its newest signed checkpoint. What may be erased of a
person is left out. An export that is there goes on where it ended.`,
		Example: "  parley audit export evidence/\n  parley audit export evidence/ --log vm-server-3c02f39c\n  parley audit verify evidence/ --key log.keys",
		Args:    arguments(1, 1, "the directory that the export goes to"),
	}
	cmd.Flags().StringVar(&log, "log", "", "the log of this `name` alone")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		logs, err := c.Logs(cmd.Context())
		if err != nil {
			return err
		}
		var done []exported
		var errs []error
		found := log == ""
		for i := range logs.Items {
			l := &logs.Items[i]
			if log != "" && l.Log != log {
				continue
			}
			found = true
			e, err := a.export(cmd, c, filepath.Join(args[0], l.Log), l)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			done = append(done, e)
		}
		if !found {
			return usage("see which there are: parley audit keys", "there is no log %q", log)
		}
		return errors.Join(append(errs, a.writeExported(done))...)
	})
	return cmd
}

// An exported log, and how much of it was there before.
type exported struct {
	Log      string `json:"log"`
	Dir      string `json:"dir,omitempty"`
	Entries  int64  `json:"entries"`
	Fresh    int64  `json:"fresh"`
	Unsigned int64  `json:"unsigned,omitempty"` // entries that nothing was signed of
}

// export brings the export of a log up to its newest checkpoint.
func (a *app) export(cmd *cobra.Command, c *api.Client, dir string, l *api.LogInfo) (exported, error) {
	e := exported{Log: l.Log, Unsigned: l.Size - l.CheckpointSize}
	if l.Checkpoint == "" {
		return e, nil
	}
	// The server is not believed where files go on this machine: a name of dots is a way out.
	if !audit.ValidLogName(l.Log) || strings.Trim(l.Log, ".") == "" {
		return e, fault.New(fault.LogBroken, "see what it is: parley audit verify", "the server has a log %q, which no log is called", l.Log)
	}
	w, err := tiles.OpenWriter(dir, l.Origin)
	if err != nil {
		return e, exportFault(dir, err)
	}
	defer w.Close()
	first := int64(w.Size())
	e.Dir, e.Entries, e.Fresh = dir, l.CheckpointSize, l.CheckpointSize-first
	switch {
	case e.Fresh < 0:
		return e, fault.New(fault.LogBroken, "keep the export: it is evidence", "the export %s has %s of the log %s, of which the server has signed %s",
			dir, term.Count(first, "entry"), l.Log, term.Number(l.CheckpointSize))
	case e.Fresh == 0:
		return e, nil
	}
	stop := a.term.Progress(cmd.Context(), a.clock, fmt.Sprintf("exporting %s: %s entries", l.Log, term.Number(e.Fresh)))
	err = c.Entries(cmd.Context(), l.Log, api.ExportEntriesParams{First: first, To: l.CheckpointSize}, func(n *api.LogEntry) error {
		var leaf audit.Hash
		if raw, err := hex.DecodeString(n.Leaf); err != nil || copy(leaf[:], raw) != len(leaf) || len(raw) != len(leaf) {
			return fmt.Errorf("entry %d of %s has the leaf hash %q", n.Index, l.Log, n.Leaf)
		}
		return w.Append(n.Event, leaf)
	})
	stop()
	if err == nil {
		err = w.Finish([]byte(l.Checkpoint))
	}
	return e, exportFault(dir, err)
}

// exportFault says what is wrong with the directory of an export.
func exportFault(dir string, err error) error {
	var at *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tiles.ErrForeign):
		return fault.Wrap(err, fault.Usage, "name another directory", "%s cannot take the export", dir)
	case errors.Is(err, tiles.ErrDiffers), errors.Is(err, tiles.ErrDamaged):
		return fault.Wrap(err, fault.LogBroken, "keep the export, it is evidence, and see: parley audit verify "+dir+" --key FILE; parley audit verify", "the export %s and the server's log differ", dir)
	case errors.As(err, &at):
		return fault.Wrap(err, fault.Usage, "ls -ld "+dir+"; df -h "+dir, "the export %s cannot be written", dir)
	}
	return err
}

func (a *app) writeExported(done []exported) error {
	if a.term.JSON() {
		return a.term.Document("export", map[string]any{"logs": done})
	}
	tab := &term.Table{Columns: []term.Column{
		{}, {Title: "LOG", Min: 12}, {Title: "ENTRIES", Right: true}, {Title: "NEW", Right: true}, {Title: "DIRECTORY", Min: 20, Drop: 1},
	}}
	var unsigned []string
	for _, e := range done {
		if e.Dir == "" {
			unsigned = append(unsigned, e.Log)
			continue
		}
		tab.Row(term.OK, e.Log, term.Number(e.Entries), term.Number(e.Fresh), e.Dir)
	}
	if tab.Len() > 0 {
		a.term.Table(tab)
	}
	if len(unsigned) > 0 {
		a.term.Notef("not exported, since nothing of it was signed: %s\n", strings.Join(unsigned, ", "))
	}
	return nil
}

func (a *app) auditStatsCommand() *cobra.Command {
	var since string
	cmd := &cobra.Command{
		Use: "stats", Short: "how much is recorded, and what happened how often",
		Example: "  parley audit stats\n  parley audit stats --since 1h --json",
		Args:    arguments(0, 0, "no arguments"),
	}
	cmd.Flags().StringVar(&since, "since", "24h", "count what happened since this `time`: RFC 3339, or how long ago, such as 1h")
	var p api.CountEventsParams
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		p.Since, err = a.moment("since", since)
		return err
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		s, err := c.Stats(cmd.Context(), p)
		if err != nil {
			return err
		}
		if a.term.JSON() {
			return a.term.Document("audit_stats", s)
		}
		a.writeStats(s)
		return nil
	})
	return cmd
}

func (a *app) writeStats(s *api.AuditStats) {
	logs := &term.Table{Columns: []term.Column{
		{Title: "LOG", Min: 12},
		{Title: "ENTRIES", Right: true},
		{Title: "SIZE", Right: true},
		{Title: "OLDEST", Drop: 2},
		{Title: "NEWEST", Drop: 1},
		{Title: "LOST", Right: true},
		{Title: "PRUNED", Right: true, Drop: 4},
		{Title: "UNSIGNED", Right: true, Drop: 3},
	}}
	for _, l := range s.Logs {
		logs.Row(l.Log, term.Number(l.Entries), bytesOf(l.Bytes), term.Stamp(l.Oldest), term.Stamp(l.Newest), lostCell(l), term.Number(l.Pruned), term.Number(l.Unsigned))
	}
	a.term.Table(logs)
	if len(s.Actions) == 0 {
		a.term.Printf("\nNothing happened since %s.\n", term.Stamp(s.Since))
		return
	}
	a.term.Printf("\nsince %s\n", term.Stamp(s.Since))
	actions := &term.Table{Columns: []term.Column{{Title: "ACTION"}, {Title: "OUTCOME"}, {Title: "EVENTS", Right: true}}}
	for _, n := range s.Actions {
		actions.Row(n.Action, n.Outcome, term.Number(n.Events))
	}
	a.term.Table(actions)
}

func lostCell(l api.LogStats) term.Cell {
	c := term.Cell{Text: term.Number(l.Lost)}
	if l.Lost > 0 {
		c.Style = term.Bad
	}
	return c
}

// bytesOf is a size for people.
func bytesOf(n int64) string {
	const step = 1024
	size, unit := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if size < step {
			break
		}
		size, unit = size/step, next
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", size, unit)
}
