package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// passphraseEnv holds the passphrase of the root key where nobody can type it.
const passphraseEnv = "SECURE_OVERLAY_ROOT_PASSPHRASE"

// rootPassphrase asks for the passphrase that opens the root key file.
func (a *app) rootPassphrase() ([]byte, error) { return a.passphrase("passphrase of the root key: ") }

// newRootPassphrase asks twice for one that is to seal it.
func (a *app) newRootPassphrase() ([]byte, error) {
	p, err := a.passphrase(fmt.Sprintf("new passphrase for the root key, at least %d characters: ", keystore.MinPassphrase))
	if err != nil {
		return nil, err
	}
	if len(p) < keystore.MinPassphrase {
		return nil, &usageError{msg: fmt.Sprintf("the passphrase has %d characters", len(p)), fix: fmt.Sprintf("at least %d characters", keystore.MinPassphrase)}
	}
	if a.getenv(passphraseEnv) != "" {
		return p, nil
	}
	again, err := a.passphrase("the same again: ")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(p, again) {
		return nil, &usageError{msg: "the two passphrases differ", fix: "type the same one twice"}
	}
	return p, nil
}

// passphrase takes it from the environment, else from the terminal, without
// showing it. It never reads standard input otherwise, which may be a script.
func (a *app) passphrase(prompt string) ([]byte, error) {
	if text := a.getenv(passphraseEnv); text != "" {
		return []byte(text), nil
	}
	f, ok := a.stdin.(*os.File)
	if !ok || !cli.IsTerminal(f) {
		return nil, &usageError{msg: "the root key wants a passphrase, and there is no terminal to ask for it", fix: passphraseEnv + "=... in the environment"}
	}
	_, _ = fmt.Fprint(a.err.W, prompt)
	p, err := term.ReadPassword(int(f.Fd()))
	_, _ = fmt.Fprintln(a.err.W)
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	return p, nil
}
