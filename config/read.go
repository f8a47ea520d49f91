package config

import (
	"errors"
)

func load(Source) (Config, error) {
	return Config{}, errors.New("load configuration: not built yet")
}
