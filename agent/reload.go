package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Reload implements api.Lifecycle. The configuration is taken up as a whole or not at
// all: a file that is half in force is in nobody's mind.
func (a *Agent) Reload(ctx context.Context) (api.Reload, error) {
	if a.opts.Load == nil {
		return api.Reload{}, api.NewError(api.CodeRefused, "this agent was started without a way to read its configuration again", "start it again")
	}
	cfg, err := a.opts.Load()
	if err != nil {
		err = configError(err)
	}
	var out api.Reload
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		if err == nil {
			out, err = l.reload(cfg)
		}
		l.noteRefusal(err)
		l.soon = true
	})
	if doErr != nil {
		return api.Reload{}, doErr
	}
	if err == nil && a.opts.Loaded != nil {
		a.opts.Loaded(cfg)
	}
	return out, err
}

// configError is a configuration that cannot be read, with all that is wrong in it.
func configError(err error) error {
	var p *config.Problems
	if !errors.As(err, &p) {
		return typed(api.CodeInvalid, err, err.Error(), "secure-overlay config validate")
	}
	lines := make([]string, len(p.List))
	for i, q := range p.List {
		lines[i] = q.String()
	}
	return typed(api.CodeInvalid, err, "the configuration has mistakes: "+strings.Join(lines, "; "), "secure-overlay config validate")
}

// reload takes up a configuration.
func (l *loop) reload(cfg config.Config) (api.Reload, error) {
	out := api.Reload{}
	var fixed []string
	for _, c := range config.Diff(l.cfg, cfg) {
		out.Changes = append(out.Changes, api.ConfigChange{Key: c.Key, From: c.From, To: c.To})
		if !c.Live {
			fixed = append(fixed, fmt.Sprintf("%s (%s here, %s in the file)", c.Key, c.From, c.To))
		}
	}
	if len(fixed) > 0 {
		return api.Reload{}, typed(api.CodeRefused, nil, "a running agent cannot change "+strings.Join(fixed, ", ")+"; nothing was changed",
			"take that back and reload; or start the agent again, which loses no packet")
	}
	if l.identity.Cert.Roles&keys.RoleObserver != 0 && len(cfg.Networks) > 0 {
		return api.Reload{}, typed(api.CodeRefused, nil, "this node joined as an observer, which is on no network", "take the networks out of the file")
	}
	for _, c := range out.Changes {
		l.log.Info("configuration changed", logkey.Key, c.Key, logkey.Former, c.From, logkey.State, c.To)
		l.note(api.Event{Time: l.now(), Kind: api.EventConfigChanged, Text: c.Key + ": " + c.From + " -> " + c.To})
	}
	l.cfg = cfg
	return out, nil
}

// noteRefusal keeps what is wrong with the file for the status, and tells it once.
func (l *loop) noteRefusal(err error) {
	was := l.refused
	l.refused = nil
	if err == nil {
		return
	}
	p := api.Problem{Code: "config-refused", Message: "the configuration that is on the disk now is not in force: " + err.Error(), Fix: "secure-overlay reload, when it is mended"}
	var e *api.Error
	if errors.As(err, &e) && e.Fix != "" {
		p.Fix = e.Fix
	}
	l.refused = []api.Problem{p}
	if len(was) == 0 || was[0] != p {
		l.log.Warn("configuration refused; the former one stays in force", logkey.Error, err)
		l.note(api.Event{Time: l.now(), Kind: api.EventConfigRefused, Text: err.Error()})
	}
}
