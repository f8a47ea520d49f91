package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// usageError is a command line that makes no sense.
type usageError struct {
	msg string
	fix string
}

func (e *usageError) Error() string { return e.msg }

// exitError ends the command with a code after everything has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// fail makes an error with a code and the command that fixes it.
func fail(code api.Code, fix, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &api.Error{Code: code, Message: err.Error(), Fix: fix, Err: err}
}

// report prints an error and returns the exit code that it means.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	if list := config.AsProblems(err); list != nil {
		a.reportProblems(list)
		return api.CodeInvalid.ExitCode()
	}
	code, fix := classify(err)
	_, _ = fmt.Fprintf(a.err.W, "%s %s\n", a.err.Paint(cli.Bad, "error:"), cleanLines(err.Error()))
	if fix != "" {
		_, _ = fmt.Fprintf(a.err.W, "  fix: %s\n", fix)
	}
	return code.ExitCode()
}

// reportProblems prints everything that is wrong with a configuration.
func (a *app) reportProblems(list []config.Problem) {
	_, _ = fmt.Fprintf(a.err.W, "%s the configuration has %s\n", a.err.Paint(cli.Bad, "error:"), cli.Plural(len(list), "problem"))
	for _, p := range list {
		hint := p.Hint
		p.Hint = ""
		_, _ = fmt.Fprintf(a.err.W, "  %s\n", cli.Clean(p.String()))
		if hint != "" {
			_, _ = fmt.Fprintf(a.err.W, "      %s\n", a.err.Paint(cli.Dim, cli.Clean(hint)))
		}
	}
}

// classify gives the errors of the packages below their codes, and a fix to
// those that carry none.
func classify(err error) (api.Code, string) {
	var usage *usageError
	var typed *api.Error
	switch {
	case errors.As(err, &usage):
		return api.CodeInvalid, usage.fix
	case errors.As(err, &typed):
		return typed.Code, typed.Fix
	case errors.Is(err, keystore.ErrNotInitialised):
		return api.CodeFailed, "secure-overlay init, or secure-overlay join TOKEN"
	case errors.Is(err, keystore.ErrLeft):
		return api.CodeRefused, "secure-overlay leave"
	case errors.Is(err, keystore.ErrExists), errors.Is(err, keystore.ErrLocked), errors.Is(err, keystore.ErrUnsafe):
		return api.CodeRefused, ""
	case errors.Is(err, keystore.ErrPassphrase):
		return api.CodeRefused, "the same command again, with the passphrase that init was given"
	case errors.Is(err, noisenet.ErrTokenHostname):
		return api.CodeRefused, "join with --name NAME as the token wants it, or on the issuer: secure-overlay token create --name PATTERN"
	case errors.Is(err, noisenet.ErrTokenSource):
		return api.CodeRefused, "on the issuer: secure-overlay token create --from PREFIX"
	case errors.Is(err, noisenet.ErrTokenDenied):
		return api.CodeRefused, "ask whoever runs the issuer"
	case errors.Is(err, noisenet.ErrTokenUsed), errors.Is(err, noisenet.ErrTokenExpired),
		errors.Is(err, noisenet.ErrTokenUnknown), errors.Is(err, noisenet.ErrTokenRevoked), errors.Is(err, noisenet.ErrJoinRefused):
		return api.CodeRefused, "on a node that issues tokens: secure-overlay token create"
	case errors.Is(err, os.ErrPermission):
		return api.CodePermission, "run the command with sudo"
	case errors.Is(err, context.DeadlineExceeded):
		return api.CodeTimeout, ""
	default:
		return api.CodeOf(err), ""
	}
}
